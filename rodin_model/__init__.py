"""Rodin: 3D avatars from words, a portrait or noise, as neural radiance fields on three feature planes."""
