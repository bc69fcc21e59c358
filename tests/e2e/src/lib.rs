//! Somersault on a real cluster: installed, watching, recovering.
