"""The networks of `jax_cifar` in plain PyTorch: the judge that the JAX numbers are right, and the road to ONNX."""
