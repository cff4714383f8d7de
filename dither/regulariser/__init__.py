"""The regulariser a noise is equal to: exact, sampled, and by Monte Carlo."""
