"""What a trained model is worth: metrics, intervals, baselines and the report."""
