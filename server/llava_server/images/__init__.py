"""Convert image URLs to preprocessed pixels.

``loader`` handles one image: it parses a data: URL (``data_url``) or fetches an https: URL (``fetch``, if
``host_rules`` allows the host and ``public_addresses`` its addresses), and sends the encoded bytes to a
disposable process (``decoder_pool``). In that process, ``decoder_process`` decodes them with Pillow in a
``sandbox``, ``color`` converts them to RGB, and ``image_processing`` creates the tiles for the model, with
``partial_resize`` for very long images. This module has no imports, to keep the decoder processes small.
"""
