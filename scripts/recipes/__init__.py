"""The papers' tables and figures: what is run, and what they say."""
