# The command line in a container. The wheel is built in one stage and installed in the other, so that the image
# holds neither a build tool nor the source.
FROM python:3.13-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY coldstore coldstore
COPY sql sql
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.13-slim
RUN useradd --system --uid 10001 --create-home --home-dir /var/lib/coldstore coldstore
COPY --from=build /wheels /wheels
# The tested versions, where the checkout has them on file; the wildcard lets the build do without.
COPY constraints.tx[t] /wheels/
RUN touch /wheels/constraints.txt \
    && pip install --no-cache-dir --constraint /wheels/constraints.txt "$(echo /wheels/coldstore-*.whl)[server]" \
    && rm -rf /wheels
USER coldstore
WORKDIR /var/lib/coldstore
ENV PYTHONUNBUFFERED=1
ENTRYPOINT ["coldstore"]
CMD ["--help"]
