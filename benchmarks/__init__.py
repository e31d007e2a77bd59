"""Measurements that the documentation and the issues quote: `python -m benchmarks [NAME ...]`, results in results/."""
