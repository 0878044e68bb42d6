"""Drawing from the page: the library of concepts, what each can be drawn with, requests and mixtures."""
