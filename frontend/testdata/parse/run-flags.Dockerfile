FROM a
RUN --mount=type=cache,target=/root/.cache,sharing=locked --mount=from=x,target=/y,"source=a,b" --network=none --security=insecure make
RUN --mount=type=$TYPE,target=/x --device=vendor.com/gpu=all,required --device=name=x \
    --network=host \
    echo --not-a-flag
RUN --mount="type=secret,id=k" -- --x
RUN --mount=type=bind\,target=/x true
