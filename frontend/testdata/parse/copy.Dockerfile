FROM a
COPY a b c /d/
COPY --from=build --chown=1:2 --chmod=755 --link --parents --exclude=*.md --exclude=b a /x
COPY --link=FALSE ["a b", "c"]
COPY ["a", "b" c
ADD --checksum=sha256:00 --keep-git-dir=true --unpack=false --link https://example.com/x.git#v1:dir /x
COPY --from= --chown="a b" -- --x /y
COPY <<"EOF" b <<-Other.txt /dir/
$keep
EOF
	tabs	$expand
	Other.txt
COPY ["<<X", "/y"]
ADD <<A <<A /z
1
A
2
A
COPY <<'a b' /x
1
a b
