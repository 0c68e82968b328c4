"""Images in one file: written and read as Docker's archive and as an OCI layout.

saving     images to a stream that is both at once
loading    a stream of either kind to images
opening    the files inside: where they lie, or unpacked
tarindex   where they lie: pure
layout     names and documents inside: pure
legacy     documents of archives older than manifests: pure
"""
