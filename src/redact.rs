//! stub
pub fn redact(text: &[u8]) -> Vec<u8> {
    text.to_vec()
}
