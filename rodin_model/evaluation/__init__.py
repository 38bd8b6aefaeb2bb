"""What `python -m rodin_model.evaluate` counts with, and the phrasings that it asks for."""
