ARG a
COPY a b
FROM x
