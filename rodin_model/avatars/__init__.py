"""Procedural avatars: attributes, captions, geometry, pictures and the data set made of them."""
