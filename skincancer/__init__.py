"""skincancer: experiments on dermoscopic images that can be repeated, compared and believed."""

__version__ = "0.1.0"
