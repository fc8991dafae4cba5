"""From labeled CT to unlabeled MR (He et al., FLARE 2024, Task 3): preparation, registration, translation, transfer.

``settings`` what a recipe may set (light) · ``grey`` intensities, the same in training and in use · ``body`` body masks
and upside-down volumes · ``registration`` transforms, saved and applied once · ``transfer`` labels from one MR sequence
to the others · ``generator`` and ``translate`` the CT-to-MR network and its use · ``structure`` whether labels still
fit a translated image. The training of the network is ``training.translator``.
"""
