"""fastbn inside of other frameworks: one module for each, imported only on request, as `import fastbn.interop.onnx`."""
