//! The `.qail` file: schema, packing, reader and writer.

pub mod schema;
