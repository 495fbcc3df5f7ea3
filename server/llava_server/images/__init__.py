"""Image URLs to preprocessed pixels.

``loader`` does all of it for one image: it parses a data: URL (``data_url``) or fetches an https: URL
(``fetch``, from hosts that ``host_rules`` allow), and sends the encoded bytes to a disposable process
(``decoder_pool``). In that process, ``decoder_process`` decodes them with Pillow in a ``sandbox``, and
``resize`` makes the model's tiles. Nothing is imported here: a decoder process must stay small.
"""
