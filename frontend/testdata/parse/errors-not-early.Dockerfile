FROM a b
RUN x
