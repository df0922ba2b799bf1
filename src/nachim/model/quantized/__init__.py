"""Models whose matrices are in few bits: their values (`grid`), their files (`store`), their products (`linear`)."""
