"""Write and open edge folders: packed weights in an ONNX Runtime graph. Imports neither torch nor the solvers."""
