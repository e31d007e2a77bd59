"""`odenet train`: networks trained on images. Every backend gets the same batches; a resumed run ends the same."""
