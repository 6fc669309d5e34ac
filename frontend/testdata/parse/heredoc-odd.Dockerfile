FROM a
RUN <<E'O'F ${x:-y}
EOF
