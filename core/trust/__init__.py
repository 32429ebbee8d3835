"""What lets a person trust a model, or not: its card, and probes of how it breaks and what it gives away."""
