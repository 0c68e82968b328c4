"""Images in one file: written and read as Docker's archive and as an OCI layout.

saving     images to a stream that is both at once
loading    a stream of either kind to images
layout     names and documents inside: pure
"""
