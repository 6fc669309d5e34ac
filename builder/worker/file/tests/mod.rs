//! COPY, ADD and WORKDIR as data: trees and an instruction in, a layer out.

mod add;
mod copy;
mod keys;
mod support;
mod workdir;
