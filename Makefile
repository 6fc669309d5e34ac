# Two commands matter: `make demo` shows the main job, `make test` passes all tests. Each sets up what it needs.

.PHONY: help build demo test check clean

help:
	@echo "make demo    install what is needed, build rbuild, build and run examples/debian-vim"
	@echo "make test    install what is needed, run all tests (ARGS='...' goes to the runner)"
	@echo "make build   target/release/rbuild"
	@echo "make check   what continuous integration runs"
	@echo "make clean   remove target/, the demo's images included"

build:
	@.ci/build

demo:
	@.ci/demo

test:
	@.ci/test $(ARGS)

check:
	@.ci/run

clean:
	rm -rf target
