# The fence runner: the coordinator's binary, and the fence agents of ClusterLabs with the Python that they run on,
# from Debian's packages. The context is the whole root filesystem, which `make image-fence` puts together.
FROM scratch
LABEL org.opencontainers.image.title="somersault fence runner" \
      org.opencontainers.image.licenses="Apache-2.0 AND GPL-2.0-or-later AND LGPL-2.0-or-later"
COPY . /
# What an agent writes (a cookie, a known host) goes to /tmp; everything else is read-only.
ENV PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
