"""What a controller does with a thousand engines, simulated and real."""
