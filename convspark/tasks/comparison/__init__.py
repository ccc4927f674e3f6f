"""Did pre-training help? The same fine-tuning from several weights: `compare`."""
