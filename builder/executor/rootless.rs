//! Running as an ordinary user, in a user namespace.
