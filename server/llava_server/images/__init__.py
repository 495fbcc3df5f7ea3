"""Conversion of image URLs to preprocessed pixels.

``loader`` handles one image: it parses a data: URL (``data_url``) or fetches an https: URL (``fetch``, from
hosts that ``host_rules`` allow), and sends the encoded bytes to a disposable process (``decoder_pool``). In
that process, ``decoder_process`` decodes them with Pillow in a ``sandbox``, and ``resize`` creates the tiles
for the model. This module imports nothing, to keep the decoder processes small.
"""
