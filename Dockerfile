# The service in an image that holds one static binary, the certificate authorities, and nothing else.
# No BuildKit-only syntax: the classic builder builds it too.
#
# Go compiles for another machine without emulating it: BuildKit names the machine that builds and the one that will run, the
# classic builder names neither, and then both are this one.
FROM --platform=${BUILDPLATFORM:-linux} golang:1.26-bookworm AS build
WORKDIR /src
# The modules have a layer of their own: it is made again only when a dependency changes.
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=unknown
ARG COMMIT=unknown
ARG TARGETARCH
# Go's build cache stays out of the layer: the classic builder never reads it again.
RUN CGO_ENABLED=0 GOARCH=$TARGETARCH GOCACHE=/tmp/cache go build -trimpath -buildvcs=false \
        -ldflags "-s -w -X main.version=$VERSION -X main.commit=$COMMIT" -o /coupond ./cmd/coupond && \
    rm -rf /tmp/cache

FROM scratch
# For a DATABASE_URL with sslmode=verify-full.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /coupond /coupond
# A number, so that Kubernetes can see that it is not root; docker-compose.yml names it too.
USER 65532:65532
EXPOSE 8080
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s --retries=3 CMD ["/coupond", "healthcheck"]
ENTRYPOINT ["/coupond"]
CMD ["serve"]
