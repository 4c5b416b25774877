#include "attention_mma.cuh"
#include "launch.cuh"

int specvlm::attend_bfloat16(const specvlm_gpu_attention& p, void* stream) {
  return by_head_size(p.head_size, [&](auto head_size) {
    constexpr int D = head_size;
    typedef MmaShape<Bf16, D> Shape;
    return launch(attend_mma<Bf16, D>, dim3(most_tiles(p, Shape::kRows), p.heads, p.splits), Shape::kBytes, p, stream);
  });
}
