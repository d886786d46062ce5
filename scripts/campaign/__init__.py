"""The parts of the campaign of scripts/reliability.py."""
