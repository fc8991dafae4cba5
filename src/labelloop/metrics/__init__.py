"""How good is a label map: surface and overlap measures, the FLARE rules, lesions, and comparing two score tables."""
