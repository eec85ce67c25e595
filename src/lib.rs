//! groundling
pub mod models;
