//! rbuild-frontend
