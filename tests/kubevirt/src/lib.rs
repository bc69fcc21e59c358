//! A stand-in for KubeVirt, CDI and the Wukong operator on a test cluster.
