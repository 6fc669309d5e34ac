FROM a
RUN <<EOF
#!/usr/bin/env python3
print("$x") \
# no comment
EOF
RUN cat <<A - 3<<-'B' && \
    # a comment
    echo done
a
A
	b
	B
RUN <<  EOF  > /foo
EOF
RUN "<<NONE" it
ONBUILD COPY <<EOF /x
content
EOF
RUN python3 <<EOF
no newline at the end
EOF