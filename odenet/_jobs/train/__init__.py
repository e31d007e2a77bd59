"""`odenet train`: networks trained on images, resumable bit for bit, the same batches for every backend."""
