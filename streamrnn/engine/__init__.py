"""The engine: a model, its streams' rows and the kernels, in process."""
