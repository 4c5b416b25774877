"""Making feature heads: data, distillation, imitation, conversion."""
