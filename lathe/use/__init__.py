"""What a trained model is used for: generation, scores, adaptation, export."""
