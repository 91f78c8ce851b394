//! The abuse tier: pods at their worst, and what the others notice of it. Needs root, and runs one test at a time: it
//! measures.
mod corpus;
mod floods;
mod measure;
mod slots;
