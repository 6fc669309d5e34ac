FROM debian
FORM debian
FROM a b c
FROM a AS 1x
RNU make
RUN --moutn=type=cache make
RUN --network=nnoe make
RUN --security=none make
RUN --link x
RUN --mount=from=$x,target=/y x
RUN --mount x
RUN --mount=a"b x
RUN --device=a,b x
CMD --flag
CMD ["a", {}]
COPY a
COPY a <<EOF
EOF
COPY ["a", 1]
COPY --link=maybe a b
COPY --from=a --from=b a b
ENV a
ENV a=b c
ENV =b
LABEL
ARG =x
EXPOSE
USER
VOLUME [""]
VOLUME []
SHELL /bin/sh
SHELL []
STOPSIGNAL
HEALTHCHECK
HEALTHCHECK CMD
HEALTHCHECK NONE x
HEALTHCHECK CND x
HEALTHCHECK --interval=1 CMD x
HEALTHCHECK --interval=1ns CMD x
HEALTHCHECK --retries=-1 CMD x
HEALTHCHECK --retries=x CMD x
ONBUILD
ONBUILD ONBUILD RUN x
ONBUILD FROM x
ONBUILD ENV x
ONBUILD RUN [1]
ONBUILD --x RUN y
// comment
&& apt-get install
RUN \
  --mount=type=cache \
  --mounnt=type=cache make
RUN <<END
END 
