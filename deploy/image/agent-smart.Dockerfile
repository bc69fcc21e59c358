# The agent with smartctl, which is in no static image: from Debian's packages. The context is the whole root
# filesystem, which `make image-smart` puts together.
FROM scratch
LABEL org.opencontainers.image.title="somersault agent with smartctl" \
      org.opencontainers.image.licenses="Apache-2.0 AND GPL-2.0-or-later"
COPY . /
ENV PATH=/usr/local/bin:/usr/sbin:/usr/bin
USER 65532:65532
