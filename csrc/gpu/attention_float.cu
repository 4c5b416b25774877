#include "attention_cores.cuh"
#include "launch.cuh"

int specvlm::attend_float(const specvlm_gpu_attention& p, void* stream) {
  return by_head_size(p.head_size, [&](auto head_size) {
    constexpr int D = head_size;
    typedef CoresShape<D> Shape;
    return launch(attend_cores<D>, dim3(most_tiles(p, Shape::kRows), p.heads, p.splits), Shape::kBytes, p, stream);
  });
}
