# An image with one static binary and the certificate authorities. It builds with the classic
# builder too, so it uses no BuildKit-only syntax.
#
# Go cross-compiles, so the build stage runs on the build platform without emulation. Only BuildKit
# sets BUILDPLATFORM and TARGETARCH; without them both platforms are this machine's.
FROM --platform=${BUILDPLATFORM:-linux} golang:1.26-bookworm AS build
WORKDIR /src
# A layer of its own for the modules, rebuilt only when a dependency changes.
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=unknown
ARG COMMIT=unknown
ARG TARGETARCH
# Not in the layer: Go's build cache, which the classic builder cannot reuse.
RUN CGO_ENABLED=0 GOARCH=$TARGETARCH GOCACHE=/tmp/cache go build -trimpath -buildvcs=false \
        -ldflags "-s -w -X main.version=$VERSION -X main.commit=$COMMIT" -o /coupond ./cmd/coupond && \
    rm -rf /tmp/cache

FROM scratch
# For a DATABASE_URL with sslmode=verify-full.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /coupond /coupond
# A number, so that Kubernetes can verify that it is not root. docker-compose.yml uses it too.
USER 65532:65532
EXPOSE 8080
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s --retries=3 CMD ["/coupond", "healthcheck"]
ENTRYPOINT ["/coupond"]
CMD ["serve"]
