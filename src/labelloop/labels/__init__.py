"""Label sets: fuse predictions with truth, measure disagreement, check anatomy, clean, select.

Everything here works on canonical label maps: uint8 arrays [z, y, x] whose axes run inferior to superior, posterior
to anterior and left to right (:func:`labelloop.images.volume.canonical`), with the class ids of a ``ClassScheme``.
"""
