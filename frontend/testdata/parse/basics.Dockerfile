# syntax=docker/dockerfile:1
# check=skip=all

# The version of the base.
# VERSION is what to build on.
ARG VERSION=12 SUITE="book worm" EMPTY
FROM --platform=$BUILDPLATFORM debian:${VERSION} AS Build
MAINTAINER  Someone  <a@b.c>
LABEL a=b "c d"='e f' g=
LABEL old  form here
ENV PATH=/a:$PATH B="x y" C=x\ y
ENV OLD  value with  spaces
WORKDIR /a b
USER me:us
EXPOSE 8080/tcp 80 ${PORT}
VOLUME /b /a
VOLUME ["/c d", " /e "]
STOPSIGNAL SIGTERM
SHELL ["/bin/bash", "-c"]
RUN echo "hello" && ls
run ["echo", "a\tb", "\u00e9"]
CMD
CMD [ "a" ]
ENTRYPOINT ["a", 'b']
ENTRYPOINT []
HEALTHCHECK --interval=1m30s --timeout=500ms --start-period=1h --start-interval=2s --retries=3 CMD curl -f localhost
HEALTHCHECK CMD ["a"]
HEALTHCHECK none
ONBUILD RUN make  all
FROM scratch
